"""From a row's value to conversations: repaired, validated, lifted, cleaned."""
