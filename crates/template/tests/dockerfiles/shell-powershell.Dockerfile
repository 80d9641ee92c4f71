FROM mcr.microsoft.com/powershell
SHELL ["pwsh", "-Command", "$ErrorActionPreference = 'Stop';"]
RUN Install-Module -Name Pester -Force
SHELL ["/bin/bash", "-c"]
RUN echo done
