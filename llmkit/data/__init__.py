"""Reading what users give: texts and rows."""
