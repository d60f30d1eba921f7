"""Copies of images for sharing, in which nothing but an allow-list of technical facts is left: see docs/deidentification.md."""
