"""The `tollgate` command: for whoever runs a deployment, on their own machine. No part of what is deployed."""
