local cjson = require "cjson"
local router = require "vllm_nginx_lb.router"

local MODELS = { small = "a", ["org/small-7b"] = "a", large = "b" }

describe("router", function()
    it("finds the pool of a request's model", function()
        assert.equal("a", router.pool_of(MODELS, "small"))
        assert.equal("b", router.pool_of(MODELS, "large"))
    end)

    it("leaves the pool to nginx where the request names no model", function()
        assert.same({}, { router.pool_of(MODELS, nil) })
    end)

    it("searches a body for its model", function()
        local search, answer = router.search(MODELS, "/v1/completions")
        assert.is_nil(answer)
        search:begin "model"
        search:see('"small"', 1, 7)
        assert.equal("small", search:name())
    end)

    it("reads no body where no pool names its models", function()
        assert.same({}, { router.search({}, "/v1/models") })
    end)

    it("lets a request come back where its body cannot be looked into", function()
        local answer = router.too_many_bodies()
        assert.same({ 503, 1 }, { answer.status, answer.retry_after })
        assert.equal("service_unavailable", cjson.decode(answer.json).error.code)
    end)

    it("answers as OpenAI does when there is no such model", function()
        local pool, answer = router.pool_of(MODELS, "none")
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
        local search, answer = router.search(MODELS, "/v1/models")
        assert.is_nil(search)
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
