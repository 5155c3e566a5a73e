--- What bytes of prompts are in tokens.

return {
    BYTES = 4, -- of a prompt for each token, about; English and code have 3.6 to 3.9
    KV_TOKENS = 131072, -- of a node's KV cache, as long as its size is unknown
}
