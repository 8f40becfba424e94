"""What a person or a program calls: HTTP, command line, embedded stack."""
