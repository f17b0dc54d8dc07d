"""What people do around the method: images of other programs, and the transfer turned round."""
