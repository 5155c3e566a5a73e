local cjson = require "cjson"
local router = require "vllm_nginx_lb.router"

local MODELS = { small = "a", ["org/small-7b"] = "a", large = "b" }

local function route(models, path, body)
    return router.route(models, path, function(see)
        if body then
            see(body)
        end
        return true
    end)
end

describe("router", function()
    it("finds the pool of a request's model", function()
        assert.equal("a", route(MODELS, "/v1/completions", '{"model": "small"}'))
        assert.equal("b", route(MODELS, "/v1/completions", '{"model": "large"}'))
    end)

    it("leaves the pool to nginx where the request names no model", function()
        for _, body in ipairs { "{}", "", '{"model": 7}' } do
            local pool, answer = route(MODELS, "/v1/completions", body)
            assert.same({}, { pool, answer })
        end
        local pool, answer = route(MODELS, "/v1/completions", nil)
        assert.same({}, { pool, answer })
    end)

    it("reads no body where no pool names its models", function()
        assert.is_nil(router.route({}, "/v1/models", function()
            error "it was read"
        end))
    end)

    it("lets a request come back where its body cannot be looked into", function()
        local pool, answer = router.route(MODELS, "/v1/completions", function()
            return false
        end)
        assert.is_nil(pool)
        assert.same({ 503, 1 }, { answer.status, answer.retry_after })
        assert.equal("service_unavailable", cjson.decode(answer.json).error.code)
    end)

    it("answers as OpenAI does when there is no such model", function()
        local pool, answer = route(MODELS, "/v1/completions", '{"model": "none"}')
        assert.is_nil(pool)
        assert.equal(404, answer.status)
        assert.same({
            error = {
                message = "The model `none` does not exist.",
                type = "invalid_request_error",
                param = "model",
                code = "model_not_found",
            },
        }, cjson.decode(answer.json))
    end)

    it("answers with the models of all pools", function()
        local pool, answer = route(MODELS, "/v1/models")
        assert.is_nil(pool)
        assert.equal(200, answer.status)
        local listed, names = cjson.decode(answer.json), {}
        for i, model in ipairs(listed.data) do
            names[i] = model.id
        end
        assert.equal("list", listed.object)
        assert.same({ "large", "org/small-7b", "small" }, names)
        assert.same({ id = "large", object = "model", created = 0, owned_by = "vllm" }, listed.data[1])
    end)
end)
