//! Real habits: how people give a secret to a program that takes it in a way of its own.

use super::{check, hidden_by};

#[test]
fn by_the_habits_of_programs_of_unix() {
    hidden_by(
        "program-habit",
        &[
            ("mysql|-uroot|-phunter2|db", "mysql|-uroot|-p[redacted]|db"),
            ("/usr/bin/mysqldump|-pa:b|db", "/usr/bin/mysqldump|-p[redacted]|db"),
            ("mysql|-c|-phunter2", "mysql|-c|-p[redacted]"),
            ("sudo|mariadb|-p123456", "sudo|mariadb|-p[redacted]"),
            ("docker|exec|db|mysql|-psecret", "docker|exec|db|mysql|-p[redacted]"),
            ("mysqlsh|root:x@localhost:3306", "mysqlsh|root:[redacted]@localhost:3306"),
            ("mongosh|-u|jdoe|-p|x|--host|h", "mongosh|-u|jdoe|-p|[redacted]|--host|h"),
            ("mongodump|-px|--db|d", "mongodump|-p[redacted]|--db|d"),
            ("curl|-u|jdoe:hunter2|https://h/", "curl|-u|jdoe:[redacted]|https://h/"),
            ("curl|-ujdoe:hunter2", "curl|-ujdoe:[redacted]"),
            ("curl|-sSu|jdoe:hunter2|h", "curl|-sSu|jdoe:[redacted]|h"),
            ("curl|-sSLujdoe:x|h", "curl|-sSLujdoe:[redacted]|h"),
            ("curl.exe|--user|jdoe:a:b", "curl.exe|--user|jdoe:[redacted]"),
            ("curl|--user=jdoe:a|--proxy-user|p:q", "curl|--user=jdoe:[redacted]|--proxy-user|p:[redacted]"),
            (
                "curl|--cert|c.pem:x|--oauth2-bearer|y",
                "curl|--cert|c.pem:[redacted]|--oauth2-bearer|[redacted]",
            ),
            ("curl|-b|session=abc", "curl|-b|[redacted]"),
            ("wget|--user|jdoe:x", "wget|--user|jdoe:[redacted]"),
            ("http|-a|jdoe:x|h", "http|-a|jdoe:[redacted]|h"),
            ("http|-A|bearer|-a|x|h", "http|-A|bearer|-a|[redacted]|h"),
            ("ab|-A|jdoe:x|-n|5|http://h/", "ab|-A|jdoe:[redacted]|-n|5|http://h/"),
            ("htpasswd|-b|/etc/x|jdoe|p", "htpasswd|-b|/etc/x|jdoe|[redacted]"),
            ("htpasswd|-nbB|jdoe|p", "htpasswd|-nbB|jdoe|[redacted]"),
            ("sshpass|-p|x|ssh|h", "sshpass|-p|[redacted]|ssh|h"),
            ("sshpass|-px|ssh|-p|2222|h", "sshpass|-p[redacted]|ssh|-p|2222|h"),
            ("ssh-keygen|-t|ed25519|-N|x|-f|k", "ssh-keygen|-t|ed25519|-N|[redacted]|-f|k"),
            ("lftp|-u|jdoe,x|sftp://h", "lftp|-u|jdoe,[redacted]|sftp://h"),
            ("ldapsearch|-D|cn=a|-w|x", "ldapsearch|-D|cn=a|-w|[redacted]"),
            ("ldapsearch|-x|-wx|-b|dc=a", "ldapsearch|-x|-w[redacted]|-b|dc=a"),
            ("ldappasswd|-D|cn=a|-s|new|-a|old", "ldappasswd|-D|cn=a|-s|[redacted]|-a|[redacted]"),
            ("redis-cli|-h|h|-a|x|ping", "redis-cli|-h|h|-a|[redacted]|ping"),
            ("cqlsh|-u|u|-p|x|h", "cqlsh|-u|u|-p|[redacted]|h"),
            ("rabbitmqctl|add_user|jdoe|x", "rabbitmqctl|add_user|jdoe|[redacted]"),
            ("mosquitto_pub|-u|u|-P|x|-t|a", "mosquitto_pub|-u|u|-P|[redacted]|-t|a"),
            ("sqlplus|scott/tiger@db", "sqlplus|scott/[redacted]@db"),
            ("sqlplus|-S|scott/tiger@//h:1521/s|@a.sql", "sqlplus|-S|scott/[redacted]@//h:1521/s|@a.sql"),
            (
                "sqlldr|userid=scott/tiger@db|control=d/a.ctl",
                "sqlldr|userid=scott/[redacted]@db|control=d/a.ctl",
            ),
            ("rman|target|sys/x@db", "rman|target|sys/[redacted]@db"),
            ("smbclient|-U|dom/jdoe%x", "smbclient|-U|dom/jdoe%[redacted]"),
            ("smbclient|//srv/share|x|-U|jdoe", "smbclient|//srv/share|[redacted]|-U|jdoe"),
            ("rpcclient|-Ujdoe%x|srv", "rpcclient|-Ujdoe%[redacted]|srv"),
            ("snmpwalk|-v2c|-c|x|h", "snmpwalk|-v2c|-c|[redacted]|h"),
            ("snmpget|-v3|-A|x|-X|y|h", "snmpget|-v3|-A|[redacted]|-X|[redacted]|h"),
            ("ipmitool|-H|h|-U|u|-P|x|power|on", "ipmitool|-H|h|-U|u|-P|[redacted]|power|on"),
            ("nmcli|dev|wifi|connect|home|password|x", "nmcli|dev|wifi|connect|home|password|[redacted]"),
            ("nmcli|con|modify|home|wifi-sec.psk|x", "nmcli|con|modify|home|wifi-sec.psk|[redacted]"),
            ("wpa_passphrase|home|x", "wpa_passphrase|home|[redacted]"),
            ("openconnect|--cookie=x|h", "openconnect|--cookie=[redacted]|h"),
            ("7z|x|-psecret|a.7z", "7z|x|-p[redacted]|a.7z"),
            ("rar|a|-hpx|a.rar|b", "rar|a|-hp[redacted]|a.rar|b"),
            ("zip|-P|x|-r|a.zip|b", "zip|-P|[redacted]|-r|a.zip|b"),
            ("qpdf|--encrypt|u|o|256|--|a.pdf", "qpdf|--encrypt|[redacted]|[redacted]|256|--|a.pdf"),
            ("pdftk|a.pdf|input_pw|x|output|b.pdf", "pdftk|a.pdf|input_pw|[redacted]|output|b.pdf"),
            ("openssl|rsa|-passin|pass:x|-in|k", "openssl|rsa|-passin|pass:[redacted]|-in|k"),
            ("openssl|enc|-aes-256-cbc|-k|x", "openssl|enc|-aes-256-cbc|-k|[redacted]"),
            ("pkcs11-tool|--login|--pin|1234|-O", "pkcs11-tool|--login|--pin|[redacted]|-O"),
            ("ansible-vault|encrypt_string|x|--name|n", "ansible-vault|encrypt_string|[redacted]|--name|n"),
            ("vault|login|x", "vault|login|[redacted]"),
            (
                "vault|kv|put|secret/app|pin=1234|note=x",
                "vault|kv|put|secret/app|pin=[redacted]|note=[redacted]",
            ),
            ("vault|operator|unseal|x", "vault|operator|unseal|[redacted]"),
            ("bw|login|jdoe@h|x", "bw|login|jdoe@h|[redacted]"),
            ("bw|unlock|x|--raw", "bw|unlock|[redacted]|--raw"),
            ("useradd|-m|-p|x|jdoe", "useradd|-m|-p|[redacted]|jdoe"),
            ("secretsdump.py|corp/jdoe:x@10.0.0.1", "secretsdump.py|corp/jdoe:[redacted]@10.0.0.1"),
            ("xfreerdp|/u:jdoe|/p:x|/v:h", "xfreerdp|/u:jdoe|/p:[redacted]|/v:h"),
            ("sh|-c|mysql -u root -phunter2 db < x", "sh|-c|mysql -u root -p[redacted] db < x"),
            ("bash|-c|cd /x && curl -u 'a:b c' h", "bash|-c|cd /x && curl -u 'a:[redacted]' h"),
        ],
    );
}

#[test]
fn by_the_habits_of_clouds_and_packages() {
    hidden_by(
        "program-habit",
        &[
            ("docker|login|-u|me|-p|x|registry", "docker|login|-u|me|-p|[redacted]|registry"),
            (
                "skopeo|copy|--src-creds|u:x|docker://a|docker://b",
                "skopeo|copy|--src-creds|u:[redacted]|docker://a|docker://b",
            ),
            ("oc|login|-u|u|-p|x", "oc|login|-u|u|-p|[redacted]"),
            (
                "kubectl|create|secret|generic|s|--from-literal=pin=1234|--from-literal|a=b",
                "kubectl|create|secret|generic|s|--from-literal=pin=[redacted]|--from-literal|a=[redacted]",
            ),
            ("az|login|-u|u|-p|x", "az|login|-u|u|-p|[redacted]"),
            (
                "az|keyvault|secret|set|--name|n|--value|x",
                "az|keyvault|secret|set|--name|n|--value|[redacted]",
            ),
            ("aws|ssm|put-parameter|--name|n|--value|x", "aws|ssm|put-parameter|--name|n|--value|[redacted]"),
            ("gh|secret|set|NAME|--body|x", "gh|secret|set|NAME|--body|[redacted]"),
            ("gh|secret|set|NAME|-bx", "gh|secret|set|NAME|-b[redacted]"),
            ("mc|alias|set|a|https://h|key|x", "mc|alias|set|a|https://h|key|[redacted]"),
            (
                "rclone|config|create|r|sftp|host|h|pass|x",
                "rclone|config|create|r|sftp|host|h|pass|[redacted]",
            ),
            ("rclone|obscure|x", "rclone|obscure|[redacted]"),
            ("fly|secrets|set|A=x|B=y", "fly|secrets|set|A=[redacted]|B=[redacted]"),
            ("heroku|config:set|A=x", "heroku|config:set|A=[redacted]"),
            (
                "npm|config|set|//registry.npmjs.org/:_authToken|x",
                "npm|config|set|//registry.npmjs.org/:_authToken|[redacted]",
            ),
            ("npm|config|set|_auth|x", "npm|config|set|_auth|[redacted]"),
            ("cargo|login|x", "cargo|login|[redacted]"),
            ("twine|upload|-u|u|-p|x|dist/a", "twine|upload|-u|u|-p|[redacted]|dist/a"),
            ("poetry|config|pypi-token.pypi|x", "poetry|config|pypi-token.pypi|[redacted]"),
            ("poetry|config|http-basic.a|u|x", "poetry|config|http-basic.a|u|[redacted]"),
            ("dotnet|nuget|push|a.nupkg|-k|x", "dotnet|nuget|push|a.nupkg|-k|[redacted]"),
        ],
    );
    check(
        &[],
        "pulumi|config|set|--secret|key|x",
        "pulumi|config|set|--secret|[redacted]|[redacted]",
        &[("secret-option", 1), ("program-habit", 1)],
    );
}

#[test]
fn by_the_habits_of_programs_of_windows_and_macos() {
    hidden_by(
        "program-habit",
        &[
            (
                "net|use|Z:|\\\\srv\\share|x|/user:corp\\jdoe",
                "net|use|Z:|\\\\srv\\share|[redacted]|/user:corp\\jdoe",
            ),
            (
                "net.exe|use|\\\\srv\\share|/user:corp\\jdoe|x",
                "net.exe|use|\\\\srv\\share|/user:corp\\jdoe|[redacted]",
            ),
            ("NET|USER|jdoe|x|/add", "NET|USER|jdoe|[redacted]|/add"),
            (
                "schtasks|/create|/tn|t|/ru|corp\\jdoe|/rp|x",
                "schtasks|/create|/tn|t|/ru|corp\\jdoe|/rp|[redacted]",
            ),
            ("schtasks.exe|/Create|/RU|jdoe|/RP|x", "schtasks.exe|/Create|/RU|jdoe|/RP|[redacted]"),
            ("tasklist|/s|srv|/u|jdoe|/p|x", "tasklist|/s|srv|/u|jdoe|/p|[redacted]"),
            ("psexec|\\\\srv|-u|jdoe|-p|x|cmd", "psexec|\\\\srv|-u|jdoe|-p|[redacted]|cmd"),
            ("winrs|-r:srv|-u:jdoe|-p:x|dir", "winrs|-r:srv|-u:jdoe|-p:[redacted]|dir"),
            ("sqlcmd|-S|h|-U|sa|-P|x", "sqlcmd|-S|h|-U|sa|-P|[redacted]"),
            ("bcp|t|out|f|-Usa|-Px", "bcp|t|out|f|-Usa|-P[redacted]"),
            (
                "sc|create|s|binPath=|c:\\a.exe|obj=|jdoe|password=|x",
                "sc|create|s|binPath=|c:\\a.exe|obj=|jdoe|password=|[redacted]",
            ),
            (
                "reg|add|HKLM\\Winlogon|/v|DefaultPassword|/t|REG_SZ|/d|x|/f",
                "reg|add|HKLM\\Winlogon|/v|DefaultPassword|/t|REG_SZ|/d|[redacted]|/f",
            ),
            ("signtool|sign|/f|a.pfx|/p|x|a.exe", "signtool|sign|/f|a.pfx|/p|[redacted]|a.exe"),
            (
                "netsh|wlan|set|hostednetwork|ssid=a|key=x",
                "netsh|wlan|set|hostednetwork|ssid=a|key=[redacted]",
            ),
            (
                "bitsadmin|/setcredentials|j|server|basic|u|x",
                "bitsadmin|/setcredentials|j|server|basic|u|[redacted]",
            ),
            (
                "powershell|-Command|$p = ConvertTo-SecureString 'x y' -AsPlainText -Force",
                "powershell|-Command|$p = ConvertTo-SecureString '[redacted]' -AsPlainText -Force",
            ),
            (
                "powershell|-c|New-LocalUser a -Password (ConvertTo-SecureString -AsPlainText \"x\" -Force)",
                "powershell|-c|New-LocalUser a -Password (ConvertTo-SecureString -AsPlainText \"[redacted]\" -Force)",
            ),
            (
                "cmd|/c|net use Z: \\\\srv\\share x /user:jdoe",
                "cmd|/c|net use Z: \\\\srv\\share [redacted] /user:jdoe",
            ),
            (
                "security|add-generic-password|-a|a|-s|s|-w|x",
                "security|add-generic-password|-a|a|-s|s|-w|[redacted]",
            ),
            (
                "security|unlock-keychain|-p|x|login.keychain",
                "security|unlock-keychain|-p|[redacted]|login.keychain",
            ),
            (
                "networksetup|-setairportnetwork|en0|home|x",
                "networksetup|-setairportnetwork|en0|home|[redacted]",
            ),
            ("xcrun|altool|-u|u|-p|x", "xcrun|altool|-u|u|-p|[redacted]"),
        ],
    );
}
