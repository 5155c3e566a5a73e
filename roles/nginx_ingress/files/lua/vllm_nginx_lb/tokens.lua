--- How many bytes of a prompt make a token. Pure.

return { BYTES = 4 }
