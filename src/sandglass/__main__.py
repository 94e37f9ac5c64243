from sandglass.cli import main

main()
