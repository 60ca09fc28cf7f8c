"""Everything outside the database: files, objects, mail, counts of tries."""
