"""What people do with the method: use images from other programs, and run the transfer in reverse."""
