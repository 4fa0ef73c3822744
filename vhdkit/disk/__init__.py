"""What every image is made of, whatever its format: extents, sector bitmaps, unique ids."""
