"""Files of hosted batch services: requests laid out as a table, results as the service writes them."""
