"""One unit compiled to an object, and where units run: this process, local workers, Ray, other machines."""
