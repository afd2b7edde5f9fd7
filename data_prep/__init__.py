"""Raw documents → tokenizer and verified, tokenised webdataset shards."""
