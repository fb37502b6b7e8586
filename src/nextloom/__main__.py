from nextloom.cli import main

main()
