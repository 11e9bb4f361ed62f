filedesc://a.arc 0.0.0.0 20080521031200 text/plain 76
1 0 InternetArchive
URL IP-address Archive-date Content-type Archive-length

dns:x 192.0.2.7 20080521031200 text/dns 22
x. 300 IN A 192.0.2.7

http://x/a b 192.0.2.7 20080521031200 text/html 70
HTTP/1.1 200 OK
Content-Type: text/html

<p>hi<img src=a.png alt=A>
http://x/old.png 192.0.2.7 20080521031200 text/html 65
HTTP/1.1 302 Found
Content-Type: text/html
Location: /a.png


http://x/c 192.0.2.7 20080521031200 text/html 98
HTTP/1.1 200 OK
Content-Type: text/html
Transfer-Encoding: chunked

<p>hi<img src=a.png alt=A>
