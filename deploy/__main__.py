from scopemill.deploy.cli import main

main()
