"""What manage.py offers for bringing rows in and out."""
