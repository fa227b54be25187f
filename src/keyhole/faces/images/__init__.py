"""Pictures of faces: photos and clips read, found and aligned, made small, and how many pixels of face they show."""
