"""What any project needs: complete files, records of runs, figures and explorers. Imports nothing else of this package."""
