"""Random views of images: their fields, and their operations on the device and on the host."""
