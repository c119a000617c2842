"""Images: Dockerfiles, and scripts that build what no registry gives."""
