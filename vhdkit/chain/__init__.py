"""Images put together: finding and verifying parents, reading through layers, telling a folder's family trees."""
