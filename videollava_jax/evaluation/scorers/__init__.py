"""Rules that mark answers, each as the program that its task's authors publish."""
