// Does what standard input says with a T2VClient, and says what came: for tests/examples/test_unity.py.
using System;
using System.Threading;
using System.Threading.Tasks;
using T2VEdge;

static class Drive
{
    static int Main(string[] words)
    {
        if (words[0] == "json")
        {
            try
            {
                foreach (var pair in T2VJson.Read(Console.ReadLine() ?? ""))
                    Console.WriteLine(pair.Key + "=" + T2VJson.Quote(pair.Value));
                return 0;
            }
            catch (FormatException) { return 1; }
        }
        var stop = new CancellationTokenSource();
        string token = words.Length > 2 ? words[2] : null;
        var client = new T2VClient(words[0], new T2VSettings { Format = words[1], Token = token });
        Task running = Task.Run(() => client.RunAsync(stop.Token));
        string line;
        while ((line = Console.ReadLine()) != null)
        {
            string[] parts = line.Split(new[] { ' ' }, 2);
            if (parts[0] == "caption") client.SetCaption(parts[1]);
            else if (parts[0] == "take") Take(client, int.Parse(parts[1]));
            else if (parts[0] == "peek")
            {
                T2VFrame frame;
                Console.WriteLine(client.TryTakeFrame(out frame) ? "frame" : "none");
            }
            else if (parts[0] == "ended") Console.WriteLine(running.Wait(10000) ? "ended" : "running");
            else Console.WriteLine((client.Showing ?? "") + "|" + client.Status);
            Console.Out.Flush();
        }
        stop.Cancel();
        bool ended = running.Wait(5000);
        client.Dispose();
        Console.WriteLine(ended ? "ended" : "stuck");
        return 0;
    }

    static void Take(T2VClient client, int count)
    {
        DateTime until = DateTime.UtcNow.AddSeconds(20);
        while (count > 0 && DateTime.UtcNow < until)
        {
            T2VFrame frame;
            if (!client.TryTakeFrame(out frame))
            {
                Thread.Sleep(1);
                continue;
            }
            Console.WriteLine("frame {0} {1} {2}x{3} {4} {5} {6}", frame.Generation, frame.Sequence, frame.Width,
                frame.Height, frame.Format, frame.Data.Length, frame.Data[0]);
            client.Recycle(frame);
            count--;
        }
        Console.WriteLine(count == 0 ? "taken" : "timeout");
    }
}
