// Go's net/http, as it comes, or with an offer to upgrade.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

func main() {
	url, how := os.Args[1], os.Args[2]
	for i := 3; i < len(os.Args); i += 2 {
		var body io.Reader = strings.NewReader(os.Args[i+1])
		if how == "chunked" {
			body = io.MultiReader(body) // of a length that isn't known
		}
		request, err := http.NewRequest("POST", url+os.Args[i], body)
		if err != nil {
			panic(err)
		}
		request.Header.Set("Content-Type", "application/json")
		if how != "plain" {
			request.Header.Set("Connection", "Upgrade")
			request.Header.Set("Upgrade", "TLS/1.2")
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			panic(err)
		}
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			panic(err)
		}
		answer.Body.Close()
		fmt.Println(answer.StatusCode, answer.Proto, string(text))
	}
}
