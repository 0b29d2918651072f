// Many frp clients in one process: frpmany CONFIG COUNT. Built by getpeers.sh within frp's source.
//
// Each is frp's own client with a connection of its own, as `frpc -c CONFIG` would be; client 7 serves the first
// proxy of the file, which must be of type https, as n7 and for n7.site.test.
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/fatedier/frp/client"
	"github.com/fatedier/frp/pkg/config"
	"github.com/fatedier/frp/pkg/config/source"
	v1 "github.com/fatedier/frp/pkg/config/v1"
	"github.com/fatedier/frp/pkg/util/log"
)

func one(path string, number int) error {
	result, err := config.LoadClientConfigResult(path, true)
	if err != nil {
		return err
	}
	proxy := result.Proxies[0].(*v1.HTTPSProxyConfig)
	proxy.Name = fmt.Sprintf("n%d", number)
	proxy.CustomDomains = []string{proxy.Name + ".site.test"}
	log.InitLogger(result.Common.Log.To, result.Common.Log.Level, 0, true)
	configSource := source.NewConfigSource()
	if err := configSource.ReplaceAll(result.Proxies, nil); err != nil {
		return err
	}
	service, err := client.NewService(client.ServiceOptions{
		Common:                 result.Common,
		ConfigSourceAggregator: source.NewAggregator(configSource),
	})
	if err != nil {
		return err
	}
	go service.Run(context.Background())
	return nil
}

func main() {
	count, err := strconv.Atoi(os.Args[2])
	for number := 0; err == nil && number < count; number++ {
		err = one(os.Args[1], number)
		time.Sleep(5 * time.Millisecond) // all at once would find the accept queue full
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	select {}
}
