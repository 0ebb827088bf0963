from scopemill.deploy.cli.main import main

main()
