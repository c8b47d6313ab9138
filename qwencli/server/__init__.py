"""`qwencli serve`: a model that answers HTTP requests.

Each API is a folder (apis.py lists them), which imports shared/, http/ and service/, but no other API.
"""
