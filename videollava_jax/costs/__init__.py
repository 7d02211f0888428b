"""What the model costs and what chips give: parameters, operations, bytes, rooflines."""
