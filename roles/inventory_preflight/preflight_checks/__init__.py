"""The checks of variables and nodes, without Ansible. The lookups of this role give them what Ansible knows."""
