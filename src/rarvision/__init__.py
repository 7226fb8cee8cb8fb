"""Recognise what is in an image out of a vocabulary of any size, by retrieving and ranking."""
