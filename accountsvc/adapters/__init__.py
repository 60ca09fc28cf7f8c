"""What is not the database: files, objects, mail, counts of tries."""
