"""From the outbox into the PostgreSQL ledger, and all that reads the ledger. Imports engine."""
