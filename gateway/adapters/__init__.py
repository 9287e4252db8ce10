"""One module per wire protocol. An adapter knows no nation, no cache, no policy and no other adapter."""
