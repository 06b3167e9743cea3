"""What people read: the report and the invoices."""
