"""What is looked for, and which texts show it: concept sets, built in or read from a folder."""
