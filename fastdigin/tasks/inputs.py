"""The photos of the tasks, under the name by which earlier versions knew them."""

from fastdigin.photos import ImageInput, collect, read_any_image, read_image, read_images, read_mask

__all__ = ["ImageInput", "collect", "read_any_image", "read_image", "read_images", "read_mask"]
