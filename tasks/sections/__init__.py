"""Sections of a recipe that fill a page of their own."""
