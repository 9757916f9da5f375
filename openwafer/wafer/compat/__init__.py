"""Modules under the vendor's names; importable only where `cs_python` puts this folder on the path."""
