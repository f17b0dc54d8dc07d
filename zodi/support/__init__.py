"""What any project needs: whole files, records of runs, figures and explorers. Imports nothing else of this package."""
