"""Files, shapes, devices and other basics that every folder may import."""
