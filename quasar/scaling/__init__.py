"""`quasar scale`: how depth, width and resolution of a plain ViT should grow with a budget of MACs or of latency."""
