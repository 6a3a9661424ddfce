"""The HTTP service: request and response models, and routes."""
