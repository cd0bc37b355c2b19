"""Programs that `export` copies next to a network; they need neither torch nor this project."""
