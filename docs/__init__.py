"""The pages, and what writes their generated parts; no part of the package."""
