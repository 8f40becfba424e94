"""The reservation engine: everything that talks to Redis. Imports nothing of ours."""
