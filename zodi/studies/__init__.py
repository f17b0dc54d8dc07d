"""What we measure: the tables, the choice of the epoch, the evidence on estimates, the checkpoint's quality, speed."""
