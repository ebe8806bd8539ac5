"""Reading what users have into splits: arrays, tables of numbers or texts, folders of images."""
